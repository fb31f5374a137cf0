"""The replay buffer's policies, all pure: group hold, age, choice of the batch, advantages. The books hold the data."""
