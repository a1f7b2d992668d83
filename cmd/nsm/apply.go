// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

func newApply(a *app) *cobra.Command {
	var cfg struct {
		managerConfig
		Files []string `flag:"filename" short:"f" help:"files with network services; - is the standard input"`
	}
	return a.command(&cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace network services from a file",
		Long: "Create or replace network services from YAML in the form of the Kubernetes custom\n" +
			"resource. All files are read and checked before anything is changed.\n\n" +
			"Wires follow: those that the rules now select other endpoints for move there, the new\n" +
			"path being made before the old one is closed.",
		Example: `  nsm apply -f - <<'END'
  apiVersion: networkservicemesh.io/v1
  kind: NetworkService
  metadata:
    name: db
  spec:
    payload: IP
    matches:
      - source_selector: {app: web}
        routes:
          - destination_selector: {role: replica}
  END`,
		Args:    cobra.NoArgs,
		GroupID: groupOperate,
	}, &cfg, func(ctx context.Context, _ []string) error {
		if len(cfg.Files) == 0 {
			return nserr.BadFlag.Errorf("no file is given").WithFix("add -f FILE, or -f - for the standard input")
		}
		var services []*adminv1.Service
		for _, file := range cfg.Files {
			list, err := a.readManifest(file)
			if err != nil {
				return err
			}
			services = append(services, list...)
		}
		return a.call(ctx, cfg.managerConfig, func(ctx context.Context, c adminv1.AdminClient) error {
			for _, s := range services {
				reply, err := c.ApplyService(ctx, &adminv1.ApplyServiceRequest{Service: s})
				if err != nil {
					return err
				}
				result := strings.ToLower(strings.TrimPrefix(reply.GetResult().String(), "RESULT_"))
				fmt.Fprintf(a.out, "networkservice/%s %s\n", s.GetName(), result)
			}
			return nil
		})
	})
}

// readManifest reads the services of one file.
func (a *app) readManifest(file string) ([]*adminv1.Service, error) {
	if file == "-" {
		return parseManifest("standard input", a.in)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nserr.BadFlag.Errorf("%w", err).WithFix("name a file that exists and can be read")
	}
	defer f.Close()
	return parseManifest(file, f)
}
