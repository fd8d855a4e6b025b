"""The surroundings of all tests."""

import os

# Many small matrices: threads cost more than they give, and one thread always sums in the same order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
