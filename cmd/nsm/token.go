// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/openvwire/nsm/sdk/identity/authority"
)

type tokenConfig struct {
	Socket string        `flag:"socket" env:"NSM_IDENTITY_SOCKET" default:"unix:///var/lib/networkservicemesh/identity.sock" help:"socket of the domain's authority, on the node that runs it"`
	Node   string        `flag:"node" help:"only a node of this name may use the token; default any new one"`
	TTL    time.Duration `flag:"ttl" default:"15m" help:"how long the token can be used"`
	Output string        `flag:"output" short:"o" default:"text" choices:"text,json,yaml" help:"form of the output"`
}

func newToken(a *app) *cobra.Command {
	var cfg tokenConfig
	token := &cobra.Command{Use: "token", Short: "Let other machines join", GroupID: groupOperate, RunE: group,
		Example: "  nsm token create --node b"}
	create := a.command(&cobra.Command{
		Use:   "create",
		Short: "Print a token with which one machine can join the domain",
		Long: "Print a token with which one machine can join the domain, once. Run it as root on\n" +
			"the node of the authority; use the token with 'nsm up --join' on the other.",
		Example: "  nsm up --node b --join \"$(ssh a nsm token create --node b)\"",
		Args:    cobra.NoArgs,
	}, &cfg, func(ctx context.Context, _ []string) error {
		text, expires, err := authority.RequestToken(ctx, cfg.Socket, cfg.Node, cfg.TTL)
		if err != nil {
			return err
		}
		if cfg.Output != "text" {
			data, err := json.Marshal(struct {
				Token   string    `json:"token"`
				Expires time.Time `json:"expires"`
			}{text, expires.UTC().Truncate(time.Second)})
			if err != nil {
				return err
			}
			return printJSON(a.out, cfg.Output, data)
		}
		fmt.Fprintln(a.out, text)
		fmt.Fprintf(a.err, "good for one use until %s\n", expires.Local().Format(time.TimeOnly))
		return nil
	})
	complete(create, "output", "text", "json", "yaml")
	token.AddCommand(create)
	return token
}
