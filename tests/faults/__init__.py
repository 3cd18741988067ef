"""The service under faults, and an oracle that says whether every session came out as the offline fold.

`schedule` says what goes wrong when, `workload` what visitors do meanwhile, `driver` plays both at a `fleet` of real
processes and writes down in a `ledger` what was sent and answered; `oracle` holds ledger and Redis against the model.
"""
