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
	"os/signal"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for us

	a := newApp()
	return a.exit(a.root().ExecuteContext(ctx))
}
