"""The User Segment Report: what people look at of a published version."""
