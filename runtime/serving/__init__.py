"""Fork and join in SGLang: the plugin, and the engine that talks to it."""
