"""Plans a training before anything heavy starts: memory, time, money, and the settings that the config leaves open."""
