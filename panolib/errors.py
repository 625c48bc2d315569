"""What all errors of users have in common."""


class UserError(Exception):
    """Something that a user can mend: the message says all there is to say, and commands print it alone."""
