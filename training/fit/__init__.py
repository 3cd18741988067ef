"""Fitting: pre-training, distillation, the fit, calibration, and the export of the artifact."""
