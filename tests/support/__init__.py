"""What tests need: servers, processes, small models, and one thread for the numbers of each process.

Several processes run on a machine of two cores. Threads of one that wait for each other there take three times as long.
"""

import os

# Before torch is imported, which reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")
