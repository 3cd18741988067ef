"""JSON bodies of requests and answers, as pydantic models: the API's contract, shared by the service and its client."""
