"""Networks with a classifier: maps of a similarity beside the CAM family of other libraries; see __main__.py."""
