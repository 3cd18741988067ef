"""The service under faults, and an oracle that checks that every session equals the offline fold.

`schedule` has the faults, `workload` the visitors' events. `driver` sends the events to a `fleet` of real processes and
records requests and answers in a `ledger`. `oracle` compares ledger and Redis with the model.
"""
