//go:build tools

// Package servers names the builder that tests/servers/build.py builds the Collector with.
package servers

import _ "go.opentelemetry.io/collector/cmd/builder"
