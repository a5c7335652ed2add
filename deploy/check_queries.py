#!/usr/bin/env python3
"""Checks that every query of the rules and of the dashboard names metrics and labels that exist.

check_queries.py [--scrape FILE] --rules OUT

Writes the dashboard's queries as recording rules to OUT, for promtool to parse. With a scrape of a daemon, checks that
everything the daemon exposes is in metrics.txt.
"""

import argparse
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
FUNCTIONS = {
    "sum", "max", "min", "rate", "increase", "histogram_quantile", "topk", "min_over_time", "label_values",
}
WORDS = {"by", "on", "and", "or", "unless", "le", "inf", "without", "ignoring"}
# Prometheus puts these on everything; the last one on buckets.
ANY_LABEL = {"job", "instance", "le"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


def catalogue():
    metrics = {}
    for line in (HERE / "metrics.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, kind, *labels = line.split()
            metrics[name] = (kind, set(labels[0].split(",")) if labels else set())
    return metrics


def samples(metrics):
    """Names as queries spell them, with their labels."""
    names = {}
    for name, (kind, labels) in metrics.items():
        for suffix in SUFFIXES.get(kind, ("",)):
            names[name + suffix] = labels
    return names


def problems(query, names):
    bare = re.sub(r'"[^"]*"', '""', query)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    used = [word for word in re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.sub(r"\{[^}]*\}|\b(?:by|on)\s*\([^)]*\)", "", bare))
            if word not in FUNCTIONS | WORDS and not word.startswith("$")]
    if not used:
        yield "names no metric"
    known = set(ANY_LABEL)
    for word in used:
        if word not in names:
            yield f"names {word}, which does not exist"
        known |= names.get(word, set())
    labels = re.findall(r"([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)", " ".join(re.findall(r"\{[^}]*\}", bare)))
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", bare):
        labels += [label.strip() for label in group.split(",")]
    for label in labels:
        if label not in known:
            yield f"uses label {label}, which none of its metrics has"


def queries():
    """(where, query) of everything."""
    alerts = (HERE / "prometheus/alerts.yml").read_text()
    # promtool has checked the syntax; an expression is one line, or a block after a bar.
    for block in re.split(r"\n\s*- alert: ", alerts)[1:]:
        name = block.split("\n", 1)[0].strip()
        body = re.search(r"expr: (?:\|\n)?(.*?)\n\s*(?:for|labels):", block, re.S).group(1)
        without_number = re.sub(r"(==|<|>|<=|>=)\s*[\d.]+", "", body)
        yield f"alert {name}", without_number
    board = json.loads((HERE / "grafana/lmcached.json").read_text())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            # label_values(metric, label): the label is no metric.
            yield f"variable {variable['name']}", re.sub(r",\s*\w+\)$", ")", variable["query"]["query"])
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--scrape", type=pathlib.Path)
    options.add_argument("--rules", type=pathlib.Path, required=True)
    options = options.parse_args()
    metrics = catalogue()
    names = samples(metrics)
    found, rules, count = [], [], 0
    for where, query in queries():
        count += 1
        numberless = re.sub(r"histogram_quantile\(\s*[\d.]+,", "histogram_quantile(", query)
        numberless = re.sub(r"topk\(\s*\d+,", "topk(", numberless)
        found += [f"{where}: {problem}" for problem in problems(numberless, names)]
        if where.startswith("panel"):
            plain = query.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")
            rules.append({"record": f"check:{len(rules)}", "expr": plain})
    # JSON is YAML.
    options.rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    if options.scrape:
        for family in re.findall(r"^# TYPE (\S+) ", options.scrape.read_text(), re.M):
            if family not in metrics:
                found.append(f"the daemon exposes {family}, which is not in metrics.txt")
        exposed = set(re.findall(r"^# TYPE (\S+) ", options.scrape.read_text(), re.M))
        # Every family is announced on every scrape, also one without samples.
        for name in sorted(set(metrics) - exposed - {"up"}):
            found.append(f"metrics.txt has {name}, which the daemon does not expose")
    if count < 30:
        found.append(f"only {count} queries were found: the files are not read as they should be")
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{count} queries, {len(names)} samples, {len(found)} problems")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
