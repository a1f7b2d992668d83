// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
)

func newDelete(a *app) *cobra.Command {
	del := &cobra.Command{
		Use:     "delete",
		Short:   "Delete a network service",
		Example: "  nsm delete service db",
		GroupID: groupOperate,
		RunE:    group,
	}
	var cfg managerConfig
	del.AddCommand(a.command(&cobra.Command{
		Use:               "service NAME",
		Aliases:           serviceKind().aliases[1:],
		Short:             "Delete a network service; wires that exist stay",
		Example:           "  nsm delete service db",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(a, &cfg, serviceKind()),
	}, &cfg, func(ctx context.Context, args []string) error {
		return a.call(ctx, cfg, func(ctx context.Context, c adminv1.AdminClient) error {
			if _, err := c.DeleteService(ctx, &adminv1.DeleteServiceRequest{Name: args[0]}); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "networkservice/%s deleted\n", args[0])
			return err
		})
	}))
	return del
}
