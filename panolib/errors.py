"""What all errors of users have in common."""


class UserError(Exception):
    """Something that a user can mend: the message says all there is to say, and commands print it alone."""


def one_line(error: Exception, *, most: int | None = None) -> str:
    """What an error says, without line breaks and in at most `most` letters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if most is None or len(text) <= most else text[: most - 3] + "..."
