"""How weights move: parameter groups, schedules, clipping, the teacher's moving average."""
