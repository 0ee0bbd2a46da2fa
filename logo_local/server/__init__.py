"""The engine over HTTP, in the shape that OpenAI's clients know. Needs the extra `server`.

A request's way: `guard` (may it come in?), `schema` (what does it ask for?), `asked` (what is that
in the engine's terms?), `lanes` (whose turn is it?), the engine, `answers` (what goes back).
"""
