"""SDEdit and sampling."""
