"""From records to tables, intervals, verdicts and figures. Nothing here trains."""
