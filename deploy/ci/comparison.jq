# The output of `compare RECIPE --to REPO --json` as Markdown.
"### Made again, against `\(.to)` at `\(.commit)`", "",
(if .same_weights then "The weights are the same.", "" else empty end),
"| metric | split | rows | ours | theirs | difference | margin | verdict |", "|---|---|--:|--:|--:|--:|--:|---|",
(.metrics[] | "| \(.metric) | \(.split) | \(.n) | \(.ours // "–") | \(.theirs // "–") | \(.difference // "–") | \(.margin // "–") | \(.verdict) |")
