"""Templates with a subquery, or with a negation such as "customers without orders"."""

from tunesmith.demo.query_template import QueryTemplate

TEMPLATES = (
    # Negations
    QueryTemplate("products_never_ordered", (
        "SELECT name FROM products WHERE price {compare} {price} AND id NOT IN (SELECT product_id FROM items)"
    ), train=(
        "Which products {compare} {price} euros were never ordered?",
        "List the products {compare} {price} that nobody has ordered.",
        "Show products {compare} {price} euros that are in no order.",
        "Find the never ordered products that are {compare} {price}.",
        "What products {compare} {price} euros have not sold at all?",
    ), test=(
        "Name everything {compare} {price} that was not ordered even once.",
        "I need all products {compare} {price} euros without a single order.",
        "Of the products {compare} {price} euros, which has nobody ever ordered?",
        "Among products {compare} {price}, what is still waiting for its first order?",
    )),
    QueryTemplate("customers_without_orders", (
        "SELECT c.name FROM customers c LEFT JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' AND o.id IS NULL"
    ), train=(
        "Which customers from {city} have no orders?",
        "List the customers in {city} who never ordered anything.",
        "Who in {city} has not placed any order?",
        "Show customers living in {city} without a single order.",
        "Find the {city} customers that have never placed an order.",
        "Name the people from {city} who have yet to order.",
    ), test=(
        "Looking at {city}, which customers did not order at all?",
        "I need the names of the {city} customers without orders.",
        "Of our customers in {city}, who is yet to place a first order?",
        "From {city}, who appears in no order at all?",
    )),
    QueryTemplate("unpaid_orders", (
        "SELECT o.id FROM orders o WHERE o.date LIKE '{month}%' "
        "AND NOT EXISTS (SELECT 1 FROM payments pay WHERE pay.order_id = o.id)"
    ), train=(
        "Which orders from {month} have no payment?",
        "List the ids of unpaid orders placed in {month}.",
        "Show the orders of {month} that nobody paid.",
        "Find the ids of all {month} orders without any payment.",
        "For which orders made in {month} are we still without money?",
        "In {month}, which orders have never been paid?",
        "What orders of {month} have not been paid for?",
    ), test=(
        "In {month}, what orders were placed but never paid for?",
        "I need the ids of the {month} orders that lack a payment.",
        "Of the orders placed in {month}, which remain unpaid?",
        "Among orders from {month}, for which has no payment come in?",
    )),
    # Comparisons
    QueryTemplate("against_average_price", (
        "SELECT name FROM products WHERE category = '{category}' "
        "AND price {side} (SELECT AVG(price) FROM products WHERE category = '{category}')"
    ), train=(
        "Which products in {category} have a price {side} the category's average?",
        "List the {category} products priced {side} the average of {category}.",
        "Show products of {category} that cost {side} the average price in {category}.",
        "Find the {category} products with a price {side} their category average.",
        "Name what is priced {side} average within {category}.",
        "Compared with the average price in {category}, which products are {side} it?",
        "Which products of {category} lie {side} its mean price?",
    ), test=(
        "Compared with the mean price of {category}, which of its products lie {side} it?",
        "I need the {category} products with a price {side} the mean of {category}.",
        "Of everything in {category}, what is priced {side} the average there?",
        "Within {category}, pick each product whose price is {side} the average one.",
    )),
    QueryTemplate("against_product", (
        "SELECT name FROM products WHERE price {compare} (SELECT price FROM products WHERE name = '{product}')"
    ), train=(
        "Which products are {compare} the {product}?",
        "List the names of products that are {compare} {product}.",
        "Show everything that is {compare} the {product}.",
        "What do we sell that is {compare} the {product}?",
        "Name each article which is {compare} the {product}.",
    ), test=(
        "Taking the {product} as the measure, which products are {compare} it?",
        "I need the names of everything that is {compare} the {product}.",
        "Of our products, which ones are {compare} the {product}?",
        "Starting from what the {product} costs, which products are {compare} that?",
    )),
    QueryTemplate("same_city", (
        "SELECT name FROM customers WHERE city = (SELECT city FROM customers WHERE name = '{customer}') "
        "AND name <> '{customer}'"
    ), train=(
        "Which other customers live in the same city as {customer}?",
        "List the customers from the city of {customer}, without {customer}.",
        "Who else lives where {customer} lives?",
        "Show all other customers in the city of {customer}.",
        "Name everybody sharing a city with {customer}, but not {customer}.",
    ), test=(
        "What other customers are based in the home city of {customer}?",
        "I need the names of all others who live in the city of {customer}.",
        "Apart from {customer}, which customers are in the same city?",
        "Of our customers, who else is at home where {customer} lives?",
    )),
    QueryTemplate("customers_with_status", (
        "SELECT name FROM customers WHERE city = '{city}' "
        "AND id IN (SELECT customer_id FROM orders WHERE status = '{status}')"
    ), train=(
        "Which customers from {city} have at least one {status} order?",
        "List the customers in {city} with a {status} order.",
        "Who in {city} has an order that is {status}?",
        "Show customers living in {city} who have any {status} order.",
        "Name the people from {city} for whom some order is {status}.",
        "Looking at customers from {city}, who has a {status} order?",
    ), test=(
        "Looking at {city}, whose orders include a {status} one?",
        "I need the names of the {city} customers with any order that is {status}.",
        "Of our customers in {city}, for whom is there a {status} order?",
        "From {city}, who placed an order that is now {status}?",
    )),
    QueryTemplate("top_per_category", (
        "SELECT p.category, p.name FROM products p WHERE p.price = "
        "(SELECT MAX(q.price) FROM products q WHERE q.category = p.category AND q.stock > {stock})"
    ), train=(
        "For each category, which product with more than {stock} in stock is the most expensive?",
        "List every category with its most expensive product having a stock above {stock}.",
        "Show the most expensive product per category among those with over {stock} in stock.",
        "What is the priciest product of each category with more than {stock} pieces in stock?",
        "Category by category, name the product of the highest price of which we stock more than {stock}.",
    ), test=(
        "Find each category's top-priced product, ignoring a stock of {stock} or fewer.",
        "I need the most expensive product of each category with a stock over {stock}.",
        "Per category, which product of more than {stock} in stock costs the most?",
        "Of products with a stock above {stock}, pick the priciest in each category.",
    )),
)  # fmt: skip
