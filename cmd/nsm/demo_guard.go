// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/lab"
)

// newDemoGuard is the process that removes a lab whose maker has died.
func newDemoGuard(a *app) *cobra.Command {
	return a.command(&cobra.Command{
		Use:    lab.GuardCommand + " NAME DIR",
		Short:  "Remove a demo when its maker is gone",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
	}, &struct{}{}, func(_ context.Context, args []string) error {
		return lab.Guard(a.in, args[0], args[1])
	})
}
