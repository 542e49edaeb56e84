"""The plumbing under all papers. It holds no paper's method: see each paper's own package for that."""


class InputError(ValueError):
    """The user gave something that cannot be used; the message names the field, the value and the fix.

    Raised where bad input enters. Entrypoints (`shared.launch.entrypoint`) print the message alone and exit with status
    2, so it must read well without a traceback. Everything else is a bug and keeps its traceback.
    """
