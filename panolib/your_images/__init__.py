"""Images of a user's own: what ``predict`` and ``adapt`` of the command line do with folders of them."""
