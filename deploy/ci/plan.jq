# The output of `release RECIPE --dry-run --json` as Markdown: what each stage takes, and what the gates demand.
def gigabytes: if . then "\(. / 1e8 | round / 10) GB" else "" end;
def cell: tostring | gsub("\\|"; "\\|") | gsub("\\s+"; " ");

"### Plan of `\(.recipe)` on \(.device)", "",
"| stage | seconds | memory | does |", "|---|--:|--:|---|",
(.stages[] | "| \(.stage) | \(.seconds // "?" | if type == "number" then round else . end) | \(.memory_bytes | gigabytes) | \(.does | cell) |"),
"", "### Gates", "",
"| metric | split | demand | rows | why |", "|---|---|---|--:|---|",
(.gates[] | "| \(.metric | cell) | \(.split | cell) | \(.rule | cell) | \(.min_n) | \(.reason | cell) |")
