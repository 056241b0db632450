"""The oracle for other people's test suites: the error gate and input strategies."""
