// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/internal/buildinfo"
	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
)

func newVersion(a *app) *cobra.Command {
	var cfg struct {
		objectOutput
	}
	c := a.command(&cobra.Command{
		Use:     "version",
		Short:   "Tell which build this is",
		Example: "  nsm version -o json",
		Args:    cobra.NoArgs,
		GroupID: groupOperate,
	}, &cfg, func(context.Context, []string) error {
		build := buildinfo.Read()
		if cfg.Output != "" {
			return printObject(a.out, cfg.Output, buildVersion(build))
		}
		_, err := fmt.Fprintf(a.out, "nsm %s %s %s\n", build, build.Go, build.Platform)
		return err
	})
	complete(c, "output", "json", "yaml")
	return c
}

// buildVersion is a build as the admin API has it.
func buildVersion(b buildinfo.Info) *adminv1.BuildVersion {
	return &adminv1.BuildVersion{
		Version: b.Version, Revision: b.Revision, Modified: b.Modified, Go: b.Go, Platform: b.Platform,
	}
}
