"""trtkit: helpers of a course on fast deep-learning inference. Importing it imports nothing heavy."""

__version__ = "0.1.0"
