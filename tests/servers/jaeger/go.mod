module servers.example/jaeger

go 1.26

// Jaeger 2.13.0. Newer releases are commits without a version, which the module proxy does not serve.
require github.com/jaegertracing/jaeger v1.76.0

// From Jaeger's own go.mod, whose replacements do not reach us.
replace github.com/Shopify/sarama => github.com/Shopify/sarama v1.33.0
