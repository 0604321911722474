"""The parser of the AsyncAPI initiative, in JavaScript, which checks our documents."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TOOLS = Path(__file__).parents[1] / ".ci" / "node"
_ERROR = 0
_SCRIPT = """
const { Parser } = require("@asyncapi/parser");
const documents = JSON.parse(require("fs").readFileSync(0, "utf8"));
(async () => {
  const found = [];
  for (const each of documents) {
    const { diagnostics } = await new Parser().parse(JSON.stringify(each));
    found.push(diagnostics);
  }
  console.log(JSON.stringify(found));
})();
"""
# Each of these is allowed, and says nothing about a document that an application generates.
_EXPECTED = {"asyncapi-latest-version"}


def faults_of(*documents: Mapping[str, Any]) -> list[str]:
    """Return the errors and the warnings of AsyncAPI documents, one line each."""
    done = subprocess.run(
        ["node", "-e", _SCRIPT],
        cwd=_TOOLS,
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: Sequence[Sequence[Mapping[str, Any]]] = json.loads(done.stdout)
    return [
        f"{each['code']} {each['message']} at {'/'.join(map(str, each['path']))}"
        for diagnostics in found
        for each in diagnostics
        if each["severity"] == _ERROR or each["code"] not in _EXPECTED
    ]
