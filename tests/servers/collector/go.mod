module servers.example/collector

go 1.26.0

require go.opentelemetry.io/collector/cmd/builder v0.161.0
