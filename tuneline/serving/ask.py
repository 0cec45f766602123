"""Ask the server beside this file one token; exit 0 when it answers. Runs inside the image, with any Python 3.

`/health` turns 200 before the first forward pass and stays 200 while the server drains: only an answer proves a start.
"""

import json
import sys
import urllib.error
import urllib.request

SERVER = "http://127.0.0.1:8000"
TIMEOUT_SECONDS = 30.0


def main() -> int:
    """Ask for one token of whatever model the server lists."""
    try:
        model = json.load(urllib.request.urlopen(f"{SERVER}/v1/models", timeout=TIMEOUT_SECONDS))["data"][0]["id"]
        question = {"model": model, "messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}
        request = urllib.request.Request(
            f"{SERVER}/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()
    except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
