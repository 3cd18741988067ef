"""What tests need: servers, processes, small models, and one thread for the numbers of each process.

Several processes run on a machine of two cores. Threads of one that wait for each other there take three times as long.
"""

import os

# Before torch and polars are imported, which read them
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")
