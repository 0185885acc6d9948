"""Render Go templates with Go itself, on the values that Ollama passes to them."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GO = shutil.which("go")
_PROGRAM = """
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

type job struct {
	Template string
	Messages []*message
	Prompt   string
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	results := []string{}
	for _, j := range jobs {
		var b bytes.Buffer
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(j.Template))
		values := map[string]any{"Messages": j.Messages, "Prompt": j.Prompt, "Response": "", "System": ""}
		if err := parsed.Execute(&b, values); err != nil {
			panic(err)
		}
		results = append(results, b.String())
	}
	json.NewEncoder(os.Stdout).Encode(results)
}
"""


def render(folder: Path, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the text of each job {template, messages, prompt}."""
    assert GO is not None
    (folder / "main.go").write_text(_PROGRAM)
    command = [GO, "run", str(folder / "main.go")]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))
