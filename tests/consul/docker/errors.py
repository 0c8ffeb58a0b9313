# SPDX-License-Identifier: Apache-2.0
"""What the suite catches."""


class APIError(Exception):
    pass


class NotFound(APIError):
    pass
