"""Model quality of what was served: calibration, AUC and drift over ended sessions."""
