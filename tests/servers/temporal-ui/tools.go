//go:build tools

// Package servers names what tests/servers/build.py builds; it is never compiled itself.
package servers

import _ "github.com/temporalio/ui-server/v2/cmd/server"
