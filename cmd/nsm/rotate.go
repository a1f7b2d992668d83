// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/identity/authority"
)

type rotateConfig struct {
	Socket string        `flag:"socket" env:"NSM_IDENTITY_SOCKET" default:"unix:///var/lib/networkservicemesh/identity.sock" help:"socket of the domain's authority, on the node that runs it"`
	After  time.Duration `flag:"after" default:"1m" help:"how long the new CA is only trusted before it signs, so that every node learns of it; 0 = it signs at once"`
	Output string        `flag:"output" short:"o" default:"text" choices:"text,json,yaml" help:"form of the output"`
}

func newRotate(a *app) *cobra.Command {
	var cfg rotateConfig
	rotate := &cobra.Command{Use: "rotate", Short: "Replace keys before their time", GroupID: groupOperate, RunE: group,
		Example: "  nsm rotate ca"}
	ca := a.command(&cobra.Command{
		Use:   "ca",
		Short: "Replace the CA of the domain",
		Long: "Replace the CA of the domain: a new one is trusted at once and signs a little later,\n" +
			"the old one is trusted until all that it has signed has expired. No wire notices.\n" +
			"Nobody needs this for the CA's age, which the authority sees to by itself. Run it as\n" +
			"root on the node of the authority.",
		Example: "  nsm rotate ca\n" +
			"  nsm rotate ca --after 1h   # with nodes that are cut off now and then",
		Args: cobra.NoArgs,
	}, &cfg, func(ctx context.Context, _ []string) error {
		done, err := authority.RequestRotation(ctx, cfg.Socket, cfg.After)
		if err != nil {
			return err
		}
		if cfg.Output != "text" {
			data, err := json.Marshal(struct {
				CA         string    `json:"ca"` // SHA-256 of the certificate
				Signs      time.Time `json:"signs"`
				OldTrusted time.Time `json:"oldTrusted"`
				Absent     []string  `json:"absent"`
			}{hex.EncodeToString(done.CA[:]), done.Signs.UTC(), done.OldTrusted.UTC(), append([]string{}, done.Absent...)})
			if err != nil {
				return err
			}
			return printJSON(a.out, cfg.Output, data)
		}
		fmt.Fprintf(a.out, "new CA %x, trusted now, signs from %s\n", done.CA[:8], done.Signs.Local().Format(time.DateTime))
		fmt.Fprintf(a.out, "the old one is trusted until %s\n", done.OldTrusted.Local().Format(time.DateTime))
		if len(done.Absent) > 0 {
			fmt.Fprintf(a.err, "not connected, so they recognise no new identity until they are: %s\n", strings.Join(done.Absent, ", "))
		}
		return nil
	})
	complete(ca, "output", "text", "json", "yaml")
	rotate.AddCommand(ca)
	return rotate
}
