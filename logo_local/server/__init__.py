"""The engine over HTTP, in the shape that OpenAI's clients know. Needs the extra `server`.

A request's way: `middleware` (access), `schema` (validation), `handlers` (the engine's call),
`workers` (the queue), the engine, `answers` (the response).
"""
