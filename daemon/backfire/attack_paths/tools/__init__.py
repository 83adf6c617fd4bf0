"""One module for each tool: functions from an edit's mask to what the tool hands to its model."""
