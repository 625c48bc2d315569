"""From records to tables, intervals, verdicts and figures; nothing here trains or opens a data set's files."""
