// SPDX-License-Identifier: Apache-2.0

// Command nsm is the whole mesh in one binary: the daemons of a node, the
// client and the endpoint, and the operator's commands. Each subcommand has a
// file of its own here that declares its configuration, fills a constructor's
// config with it, and runs; everything else lives in the packages.
//
// Exit codes: 0 done, 1 failed, 2 used wrongly, 3 not found, 4 not allowed,
// 5 not reachable.
package main

import (
	"context"
	"os"
)

func main() { os.Exit(run()) }

func run() int {
	a := newApp()
	ctx, stop := a.untilTold(context.Background())
	defer stop()
	return a.exit(a.root().ExecuteContext(ctx))
}
