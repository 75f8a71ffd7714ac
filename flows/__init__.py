"""When things happen, in what order, with which retries."""

import logging

# In a deployment Prefect's handlers pass on what this logger lets through; see prefect.yaml.
logging.getLogger("habitus").setLevel(logging.INFO)
