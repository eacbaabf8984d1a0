"""Models by name, and the user's own as `package.module:function`."""
