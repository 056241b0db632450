"""The oracle for other people's tests: ``check``, ``conforms``, ``Claims``; ``gate`` and ``inputs`` beneath them."""

from saccade.testing.check import Report as Report, check as check, conforms as conforms
from saccade.testing.claims import Claims as Claims
