"""An OpenAI-compatible HTTP API for the engine. Needs the extra `server`.

A request passes through `middleware` (access), `schema` (validation), `handlers` (the engine call),
`workers` (the queue), the engine, and `answers` (the response).
"""
