"""Routes and greedy answers as JSON, for the comparison of local and remote devices.

python rpc_answers.py MODEL ADAPTERS [HOST:PORT,...]
"""

import json
import sys

PROMPTS = [
    "Sort these words from A to Z: pear, apple, fig.",
    "Where does Lonu live?",
    "What animal does Masta look after?",
    "Why is the sky blue?",
]


def main(model: str, adapters: str, servers: str = "") -> None:
    """Print a list of answers: each signal, mixture and prompt."""
    from logo_local import LoGo, use_rpc_servers

    if servers:
        use_rpc_servers(servers)
    found = []
    for signal in ("norm", "profile"):
        for mixture in ("stacked", "scales"):
            settings = {"signal": signal, "mixture": mixture, "past": False, "top_k": 3}
            settings |= {"n_threads": 1, "n_threads_batch": 1}
            with LoGo(model, adapters, n_gpu_layers=-1 if servers else 0, **settings) as llm:
                for prompt in PROMPTS:
                    message = {"role": "user", "content": prompt}
                    answer = llm.create_chat_completion([message], max_tokens=24, temperature=0.0)
                    route = answer["logo"]["route"]
                    found.append(
                        {
                            "case": f"{signal}, {mixture}: {prompt}",
                            "text": answer["choices"][0]["message"]["content"],
                            "weights": {a["name"]: a["weight"] for a in route["adapters"]},
                        }
                    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
