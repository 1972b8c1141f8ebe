//go:build tools

// Package tools names the programs of the autoscaler, so that their versions and hashes are pinned
// here.
package tools

import (
	_ "github.com/kedacore/keda/v2/cmd/adapter"
	_ "github.com/kedacore/keda/v2/cmd/operator"
)
