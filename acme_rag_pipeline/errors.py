"""The base of every error that the command line and Dagster show as one sentence, without a traceback."""


class UserError(Exception):
    """Something that a person can mend; the message says in one sentence what is wrong and what to do.

    Its classes stand where they are raised and are `ValueError` or `RuntimeError` too. Any other error is a defect and keeps its
    traceback.
    """
