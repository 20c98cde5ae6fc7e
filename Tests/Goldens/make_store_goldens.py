"""A job store of every released schema, as SQL text, with rows as that release wrote them.

The statements are read out of the release's own Sources/EdgeJobs/JobStore.swift in git; the values of JSON columns have the
keys that the release's types had. Tests/EdgeJobsTests/StoreUpgradeTests.swift upgrades each. A schema that was released gets
a line here, and its file is never made anew.

    python3 make_store_goldens.py            # writes stores/1.sql, stores/2.sql, …
"""
import json
import re
import sqlite3
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
# The last migration, and a commit at which it was the last.
RELEASES = [("1 jobs", "ca1d5ba"), ("2 imports", "bfdbed1"), ("3 priorities and running time", "641942a")]
BLOB = {letter: "sha256:" + letter * 64 for letter in "abcdef"}
STATES = ["queued", "running", "pausing", "paused", "cancelling", "cancelled", "failed", "succeeded"]


def migrations(commit):
    text = subprocess.check_output(
        ["git", "show", f"{commit}:Sources/EdgeJobs/JobStore.swift"], cwd=HERE, text=True)
    found = re.findall(r'Migration\(\s*name: "([^"]+)",\s*sql: """\n(.*?)"""', text, re.S)
    assert found, commit
    return [(name, unindented(sql)) for name, sql in found]


def unindented(text):
    """A Swift string of several lines: what stands before the closing quotes stands before no line of it."""
    lines = text.split("\n")
    assert lines[-1].strip() == "" and all(line.startswith(lines[-1]) for line in lines[:-1])
    return "\n".join(line[len(lines[-1]):] for line in lines[:-1])


def text(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def request(name, release):
    keys = {
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-08, "adapter": "lora", "base_model": "smol",
        "datasets": [{"path": "chats"}], "gradient_accumulation_steps": 8, "learning_rate": 0.0002, "lora_alpha": 32,
        "lora_dropout": 0, "lora_r": 16, "lora_target_modules": "all-linear", "lr_scheduler": "cosine",
        "max_grad_norm": 1, "micro_batch_size": 1, "name": name, "num_epochs": 3, "seed": 42, "sequence_len": 512,
        "threads": 2, "train_on_inputs": False, "val_set_size": 0.1, "weight_decay": 0,
    }
    if release >= 2:
        keys |= {"optimizer": "auto", "precision": "auto"}
    return keys


def plan(release):
    keys = {
        "budget_bytes": 1 << 30, "choices": ["recompute every layer"], "held_out_samples": 2, "peak_bytes": 1 << 29,
        "pools": [{"bytes": 1 << 28, "name": "base weights"}], "samples": 18, "too_long_lines": [3], "too_long_samples": 1,
        "total_steps": 9, "trainable_parameters": 4884480,
    }
    if release >= 2:
        keys |= {
            "budget_reason": "memory_budget", "precision": "int8", "process_bytes": 1 << 24,
            "trades": [{"costs_time": 0.25, "saves_bytes": 1 << 27, "what": "recompute every layer"}],
        }
    return keys


PROGRESS = {
    "budget_bytes": 1 << 30, "epoch": 0.5, "eta_seconds": 12.5, "grad_norm": 0.75, "learning_rate": 0.0001, "loss": 2.5,
    "planned_peak_bytes": 1 << 29, "rss_bytes": 1 << 28, "step": 3, "tokens_per_second": 100.5, "total_steps": 9,
}
PROBLEM = {
    "detail": "step 4: loss nan", "status": 500, "title": "The loss or a gradient is not finite",
    "type": "urn:edgetune:problem:non-finite",
}
REPORT = {
    "architecture": "llama", "context_length": 2048, "file_bytes": 9, "hidden_size": 576, "layers": 30,
    "parameters": 134515008, "quantisation": "Q4_1 71 %", "target_modules": ["q_proj", "v_proj"], "vocabulary": 49152,
}


def fill(db, release):
    for place, state in enumerate(STATES, 1):
        job, name = f"j-{place:012d}", f"a-{state}"
        has_run = state not in ("queued", "cancelled")
        is_final = state in ("cancelled", "failed", "succeeded")
        db.execute(
            f"INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?{', -1, 59.5, 1' if release >= 3 else ''})",
            (job, place, name, state, "why" if state in ("paused", "failed") else None, 1000 + place % 2, 1.7e9 + place,
             1.7e9 + 60 if has_run else None, 1.7e9 + 120 if is_final else None, int(has_run), 0,
             text(request(name, release)), BLOB["a"], text([BLOB["b"]]), text(PROGRESS) if has_run else None,
             text(plan(release)), text(PROBLEM) if state == "failed" else None, name if state == "succeeded" else None))
        events = [{"state": "queued", "type": "state"}, {"plan": plan(release), "type": "plan"}]
        if has_run:
            events += [{"progress": PROGRESS, "type": "step"}, {"message": "kernel set avx2", "type": "log"}]
        if is_final:
            events.append({"state": state, "type": "end"})
        for seq, event in enumerate(events, 1):
            line = text({"at": "2023-11-14T22:13:20Z", "seq": seq} | event)
            db.execute("INSERT INTO events VALUES (?, ?, ?)", (job, seq, line))
        db.execute("INSERT INTO idempotency_keys VALUES (?, ?, ?, ?)", (1000 + place % 2, f"key {place}", "0" * 64, job))
    db.execute("INSERT INTO datasets VALUES ('chats', ?, 9, 1000, 1.7e9, ?)",
               (BLOB["b"], text({"kinds": {"messages": 21}, "samples": 21})))
    db.execute("INSERT INTO adapters VALUES ('a-succeeded', 'j-000000000008', 'smol', ?, 1000, 1.7e9)", (BLOB["a"],))
    for letter in "abc":
        db.execute("INSERT INTO blobs VALUES (?, 9, 1000, 1.7e9)", (BLOB[letter],))
    if release >= 3:
        db.execute("INSERT INTO usage VALUES (1000, 119, 1.7e9)")
    model = ["smol", BLOB["a"], 1000, 1.7e9, text(REPORT)]
    if release == 1:
        db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?)", model)
    else:
        files = text([{"blob": BLOB["d"], "name": "config.json"}])
        db.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?, ?)", [*model, files, "hf:a/b@c"])
        db.execute("INSERT INTO imports VALUES ('big', 'i-1', 1, 1000, 1.7e9, ?, NULL, 18, 27, NULL)",
                   (text([{"blob": BLOB["c"], "name": "model.safetensors"}]),))


def main():
    for number, (name, commit) in enumerate(RELEASES, 1):
        db = sqlite3.connect(":memory:")
        # As GRDB's DatabaseMigrator keeps them.
        db.execute("CREATE TABLE grdb_migrations (identifier TEXT NOT NULL PRIMARY KEY)")
        steps = migrations(commit)
        assert steps[-1][0] == name, steps
        for identifier, sql in steps:
            db.executescript(sql)
            db.execute("INSERT INTO grdb_migrations VALUES (?)", (identifier,))
        fill(db, number)
        db.commit()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (HERE / "stores" / f"{number}.sql").write_text("\n".join(db.iterdump()) + "\n")


main()
